# The base of all images here, in place of the public one that each Dockerfile names as default. base.tar is
# what mmdebstrap made of Debian's packages (onebox/imagebuild.py).
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["/bin/bash"]
